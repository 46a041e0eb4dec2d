"""What does the work: expert and segmenter replicas, and the backends they own."""
