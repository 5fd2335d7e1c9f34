"""Stages that store weights in fewer bits, in formats that plain `transformers` and vLLM load."""
