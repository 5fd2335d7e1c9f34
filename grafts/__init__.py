"""The model parts that stages put into pretrained models, and the loader that puts them back when a model is read.

A graft is `torch` and `transformers` only: it knows no stage, no scheduler and no tracker, so a model made here loads
wherever this package is installed. `grafts.loader` reads and writes model directories; each other module holds one
method as pure tensor functions, with a naive reference beside every fast path.
"""
