"""Methods that the project does not have, each in one file: nothing else differs without them."""
