"""The composition root: puts the services together, ships them and watches them."""

__version__ = "0.1.0"
