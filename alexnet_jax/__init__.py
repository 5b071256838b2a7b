"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in JAX: two towers, data and model parallel."""

__version__ = '0.1.0'
