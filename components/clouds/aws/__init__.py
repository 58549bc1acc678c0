"""EKS, and what it stands on: VPC, node groups, S3 with EFS or FSx for Lustre, IAM."""
