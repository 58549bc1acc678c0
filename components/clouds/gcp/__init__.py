"""GKE, and what it stands on: VPC, node pools, Cloud Storage with Filestore or Managed Lustre, IAM."""
