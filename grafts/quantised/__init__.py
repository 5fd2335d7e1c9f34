"""Linears that hold integer codes instead of weights, as a graft: for models whose structure is no standard one."""
