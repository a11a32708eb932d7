"""Features of images: an encoder with its preprocessing, and embeddings of many images."""

from .embedding import Embeddings, embed
from .encoder import Encoder, Tokens, load_encoder
from .probing import probe

__all__ = ['Embeddings', 'Encoder', 'Tokens', 'embed', 'load_encoder', 'probe']
