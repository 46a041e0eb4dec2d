"""Family, plan and shape as documents of Kubernetes; pure."""
