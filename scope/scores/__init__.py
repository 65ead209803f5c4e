"""What generated tokens compete by where some must leave: one file each."""
