"""What a report of a bug needs to say of the machine and the software, and what is amiss with them."""
