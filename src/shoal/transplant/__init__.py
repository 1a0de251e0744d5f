"""Changing the latent size of a trained model, and keeping what it learned.

Growth adds dimensions that change nothing yet; shrinking projects onto those that are used most. ``layout`` says which
tensors have the latent and what they do with it, ``donor`` what is asked of the trained model, ``rules`` which map of
the latent fits its kind, ``growth`` what new dimensions begin with; ``carry`` takes every tensor through the map.
"""

from shoal.transplant.resize import check_change, transplant

__all__ = ["check_change", "transplant"]
