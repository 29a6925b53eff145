"""S3 servers, what stands in front of them, and the table of faults."""
