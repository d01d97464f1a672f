"""What happens to one volume on its way through a network."""
