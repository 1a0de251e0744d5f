"""How good a model is. Every measure is in [0, 1] pixels and says on how many images it was taken."""
