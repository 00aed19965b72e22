"""The plain reading of the method, which the fast one is tested and measured against."""
