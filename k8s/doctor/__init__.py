"""What a cluster lacks, one line each with what helps."""
