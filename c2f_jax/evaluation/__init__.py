"""How good the classes and the boxes are, exactly over all examples."""
