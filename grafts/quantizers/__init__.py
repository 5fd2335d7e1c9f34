"""Weight quantisers that know the inputs a weight will see, as pure tensor functions on one weight and its moments.

They share the grids, the codes and the storage of `grafts.rtn`, so each of them is exactly round-to-nearest where the
inputs say nothing: GPTQ for uncorrelated inputs of equal strength, AWQ with exponent 0.
"""
