"""MLOS beside other servers: the same file, the same threads, the same client, on one host and in one run."""
