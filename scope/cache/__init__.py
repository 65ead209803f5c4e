"""A cache of preallocated slots, in which evicting a token means freeing its slot."""
