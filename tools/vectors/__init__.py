"""What tools.check_vectors computes, a file a method; file.py reads the vectors."""
