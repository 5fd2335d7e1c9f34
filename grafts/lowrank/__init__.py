"""Low-rank correction of quantised weights, as pure tensor functions.

A correction of rank r adds A_i (B x) to what the quantised module i gives for its input x, so that the product of both
factors stands for the weight's quantisation error E_i = W_i - W'_i where the inputs are strong. `covariance` says how
strong they are, `glowq` solves for one B shared by all modules that read the same x, `comparators` for one B a module,
`selection` decides where a correction is worth its bytes.
"""
