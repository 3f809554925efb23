"""Small networks trained on MNIST, whose BNs are unlike those with random weights.

They have dead channels, gammas of both signs, means far from zero and saturated outputs.
"""
