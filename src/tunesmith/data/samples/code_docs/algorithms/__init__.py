"""Well-known algorithms that the code documentation set is made from, by what they work on."""
