"""The 234 words of the recall task, one token each."""

# Six different letters each, so that while a word is being spelled the next letter follows from
# the word and the letter before it.
_WORDS = """
    anchor author badger basket bishop branch bridge bronze bucket butler candle carbon carpet
    castle citrus clover cobalt dancer donkey dragon falcon flower forest friday garden
    goblin guitar helium hunter island jacket knight lizard magnet marble market meadow monday
    monkey nickel orange oxygen oyster pencil pigeon planet pocket poetry prince python radish
    rocket salmon shield shovel shrimp silver singer sphinx spider spring sunday throne walnut
"""
WORDS = tuple(_WORDS.split())
INDICES = 64  # records are numbered modulo this, so it is also the longest task
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")

UNK, PAD, BOS, EOS = "<unk>", "<pad>", "<bos>", "<eos>"
RECALL, NONE = "RECALL", "NONE"
VOCABULARY = (
    *(UNK, PAD, BOS, EOS, RECALL, NONE),
    *(f"K{i}" for i in range(INDICES)),
    *(f"X{i}" for i in range(INDICES)),
    *WORDS,
    *(str(digit) for digit in range(10)),
    *LETTERS,
)
TOKEN_ID = {token: i for i, token in enumerate(VOCABULARY)}
