"""Deletes the object of each document whose deletion was asked for, and says so."""
import os

import boto3

import topic

s3 = boto3.client(
    "s3",
    endpoint_url=os.environ["POC_S3_ENDPOINT"],
    region_name="us-east-1",
    aws_access_key_id=os.environ["POC_S3_ACCESS_KEY"],
    aws_secret_access_key=os.environ["POC_S3_SECRET_KEY"],
)
bucket = os.environ["POC_S3_BUCKET"]
done = topic.producer()

for message in topic.messages("s3"):
    if message["type"] == "deletion_requested":
        document_id = message["document_id"]
        s3.delete_object(Bucket=bucket, Key=f"{document_id}/original")
        topic.publish(done, "s3_deleted", document_id)
