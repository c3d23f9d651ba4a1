"""What a network costs, how faithful a student is to its teacher, and how runs compare."""
