"""Small networks trained on MNIST, whose BNs have what random weights do not: dead channels,
gammas of both signs, means far from zero, saturated outputs.
"""
