"""Engines that answer for an artifact: one script each, run by the engine's own interpreter, never imported.

    standard input   {"path": "the artifact", "sequences": [[token ids], …]}
    standard output  {"versions": {package: version}, "log_probs": [[…], …]}

`log_probs` are the natural logarithms of the probabilities of the token after each sequence, for the whole
vocabulary by token id; null where the engine keeps quiet. A script imports nothing of ours, so it runs where
only the engine is installed. Run it as `python -P SCRIPT`: it is named like the package that it imports.
"""
