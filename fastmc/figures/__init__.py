"""The pictures of the paper (its figures 3 and 4), training curves and nearest neighbours.

One module a picture. In each, what is measured is a function of its own that needs no matplotlib figure, and what is
drawn takes data in and gives a matplotlib Figure out. `train.figures` is the command line.
"""
