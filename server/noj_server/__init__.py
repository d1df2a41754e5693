"""The control plane of NOJ dispatch: queue, leases and registry in Redis, blobs on disk."""
