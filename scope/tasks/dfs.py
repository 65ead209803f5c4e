"""Depth-first search, written down move by move, with questions about its state.

After TriAttention's state queries (https://arxiv.org/abs/2604.04921), with a graph and wording of
our own. The graph says who is whose neighbour; who was seen, and where one came from, is said in
the generation only.
"""

import re
from random import Random

from scope.tasks.made import MadeTask, Problem, numbered_lines, plain
from scope.tasks.task import Exam, Marks
from scope.tasks.words import draw_names

_QUESTION = re.compile(r"([0-9]{1,6})\. path")
_MOVES = 4  # between two questions; every fifth line is one
_EXTRA_EDGES = {"easy": 0.0, "medium": 0.2, "hard": 0.4}  # a node, beside those of a tree


class DepthFirst(MadeTask):
    """A question is a line that states the path from the start to the current node."""

    name = "dfs"
    instruction = (
        "Search the graph below depth-first, and write every move as a numbered line. Each line of "
        "the graph names a node and its neighbours. At a node, look at its neighbours in the given "
        "order: one where you have been already is seen; the first other one is new, and you go "
        "there. Where all are seen, go back to the node from which you first came to this one. "
        "Write '3. owl: fox seen, bee new, go to bee' or '4. bee: owl seen, back to owl'. Every "
        "line whose number can be divided by 5 is no move: write the nodes on the way from the "
        "start to where you are now, as in '5. path: fox owl'. End with the path line after the "
        "last move, when you are at the start again and all its neighbours are seen. Write nothing "
        "else."
    )
    worked = 2

    def draw(self, rng: Random, k: int, level: str) -> Problem:
        # A search of a connected graph takes each edge of its tree twice.
        nodes = draw_names(rng, 1 + k * _MOVES // 2, 1)
        edges = {(rng.randrange(place), place) for place in range(1, len(nodes))}
        while len(edges) < len(nodes) - 1 + int(_EXTRA_EDGES[level] * len(nodes)):
            low, high = sorted(rng.sample(range(len(nodes)), 2))
            edges.add((low, high))
        graph: dict[str, list[str]] = {node: [] for node in nodes}
        for low, high in sorted(edges):
            graph[nodes[low]].append(nodes[high])
            graph[nodes[high]].append(nodes[low])
        for neighbours in graph.values():
            rng.shuffle(neighbours)
        shown = list(graph)
        rng.shuffle(shown)
        text = "\n".join(f"{node}: {', '.join(graph[node])}" for node in shown)
        written, questions, answers = _search(graph, nodes[0])
        return Problem(f"{text}\n\nStart: {nodes[0]}", "\n".join(written), questions, answers)

    def asks(self, question: str, answer: str) -> bool:
        return bool(_QUESTION.fullmatch(question)) and answer == plain(answer)

    def mark(self, exam: Exam, pred: str) -> Marks:
        lines = numbered_lines(pred)
        said = []
        for question in exam.questions:
            word, found, nodes = lines.get(int(question.partition(".")[0]), "").partition(":")
            said.append(plain(nodes) if found and plain(word) == "path" else None)
        answered = tuple(nodes is not None for nodes in said)
        correct = tuple(map(str.__eq__, exam.answers, (nodes or "" for nodes in said)))
        return Marks(answered, answered, correct)


def _search(graph: dict[str, list[str]], start: str) -> tuple[list[str], list[str], list[str]]:
    """All lines of the search; the questions in it, and their answers."""
    path, seen = [start], {start}
    lines, questions, answers = [], [], []
    while len(path) > 1 or not seen.issuperset(graph[start]):
        here = path[-1]
        looks = []
        for other in graph[here]:
            if other not in seen:
                looks.append(f"{other} new, go to {other}")
                path.append(other)
                seen.add(other)
                break
            looks.append(f"{other} seen")
        else:
            path.pop()
            looks.append(f"back to {path[-1]}")
        lines.append(f"{len(lines) + 1}. {here}: {', '.join(looks)}")
        if (len(lines) + 1) % (_MOVES + 1) == 0:
            questions.append(f"{len(lines) + 1}. path")
            answers.append(" ".join(path))
            lines.append(f"{len(lines) + 1}. path: {' '.join(path)}")
    return lines, questions, answers
