"""Handwritten digits for the comparison, and safe readers for the files they come in.

The way data takes: :mod:`.mnist` searches, :mod:`.idx` and :mod:`.npy` read, :mod:`.pickled` rebuilds the arrays of a
pickled ``.npy`` without running a pickle, :mod:`.dataset` checks what came, :mod:`.download` fetches what is missing.
Nothing here needs torch.
"""

from .dataset import MNIST
from .digits import digits_as_mnist
from .download import DownloadError, cache_folder, download_mnist
from .mnist import DatasetNotFoundError, load_mnist, load_mnist_or_digits
from .npy import load_npy

__all__ = [
    "MNIST",
    "DatasetNotFoundError",
    "DownloadError",
    "cache_folder",
    "digits_as_mnist",
    "download_mnist",
    "load_mnist",
    "load_mnist_or_digits",
    "load_npy",
]
