"""How a prompt's budget is shared out among the layers: one file each."""
