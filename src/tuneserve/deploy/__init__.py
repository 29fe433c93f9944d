"""Files that bring a plan to Docker Compose, Kubernetes, Ray Serve or systemd."""
