"""The plain truth: every equation of the paper as one short function, in its notation.

Written for reading and for checking, not for speed: banks are built, concatenations are made, every gradient comes
from autograd, and any shape and float dtype works (float64 makes it the oracle of tests and benchmarks).
"""
