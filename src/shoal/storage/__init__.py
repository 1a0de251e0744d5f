"""Where bytes lie: local paths and object stores behind one interface, and the node's cache of what came from afar."""
