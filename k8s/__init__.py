"""What a platform needs beside the cluster: rules and dashboards, rendered from the family."""
