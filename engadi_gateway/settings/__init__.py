"""What an operator can say: the table of options, what their texts mean, and where they come from."""
