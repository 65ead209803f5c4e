"""The synthetic recall task and the tiny Llama trained on it, the harness's default model.

``vocabulary`` has the words and the tokenizer, ``task`` draws examples, ``build`` writes them as
JSON lines, ``scoring`` reads the answers, ``model`` is the Llama before training; ``model/`` beside
it is the trained one, made by ``scripts/train_recall.py``.
"""
