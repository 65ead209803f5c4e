"""What a compression method is: two interfaces, one registry of names, one configuration."""
