"""Where it is learned: everything that knows Ray, TensorBoard and the terminal."""
