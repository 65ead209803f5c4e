"""Words for made-up problems: short, common, each different from the others at a glance."""

from random import Random

from scope.errors import ScopeError

_ADJECTIVES = """
    amber blue bold brave bright calm clever cold crisp dark dry eager fast fresh gentle gold gray
    green happy heavy humble keen kind late light loud lucky mild new noble old pale plain proud
    quick quiet red rich round sharp shy silver slow small soft steady strong sweet tall thin warm
    white wide wild wise young
"""
_NOUNS = """
    acorn anchor apple arrow atlas badge bagel baker balloon banjo barn basin basket beach beacon
    beard bell bench berry bike bird blanket boat bone book boot bottle bowl branch bread brick
    bridge broom brush bucket bus butter cabin cable cactus camel camera candle canoe canyon carpet
    carrot castle cave chain chair cherry chess circle clock cloud clover coat coin comet compass
    copper coral cotton crab crane crayon creek cricket crown cup curtain daisy dance desert desk
    diamond dinner doctor dog dollar dolphin door dragon drum duck eagle earth egg elbow engine
    envelope fabric falcon farm feather fence fern ferry field finger fire flag flute forest fork
    fountain fox frog garden garlic gate ghost giant ginger glass glove goat grape guitar hammer
    harbor hat hawk helmet hill honey horn horse hotel house island ivory jacket jar jelly jewel
    jungle kettle key king kite kitten knee knife ladder lake lamp lantern leaf lemon letter lion
    lizard magnet maple marble market mask meadow medal melon mirror monkey moon mountain mouse
    museum mustard needle nest nickel notebook oak ocean olive onion orange orchard otter oven owl
    paddle palace panda paper parrot peach pearl pebble pencil pepper piano pillow pilot pine pirate
    planet plate pocket pond potato prince pumpkin puzzle queen rabbit radio rain raven ribbon river
    robot rocket roof rope rose sailor salad salmon sand saddle school shadow shark sheep shell ship
    shoe shovel snow soap sock soup spider spoon square stable star statue stone storm sugar summer
    sun table tailor tea temple thunder tiger toast tower train tree trumpet tulip tunnel turtle
    umbrella valley vase velvet violin wagon walnut water whale wheat wheel window winter wolf yard
"""
NOUNS = tuple(_NOUNS.split())
_PAIRS = tuple(f"{adjective} {noun}" for adjective in _ADJECTIVES.split() for noun in NOUNS)


def draw_names(rng: Random, count: int, words: int) -> list[str]:
    """Different names of one word, or of two, which share their words with others.

    Raises:
        ScopeError: there are not so many.
    """
    names = NOUNS if words == 1 else _PAIRS
    if count > len(names):
        raise ScopeError(f"{count} names are needed, and there are {len(names)}; lower --k")
    return rng.sample(names, count)
