"""The one topic that everything goes through: JSON messages with a `type` and a `document_id`."""
import json
import os

from kafka import KafkaConsumer, KafkaProducer

TOPIC = os.environ["POC_TOPIC"]
BROKERS = os.environ["POC_KAFKA_BROKERS"]


def producer():
    return KafkaProducer(bootstrap_servers=BROKERS)


def publish(to, kind, document_id):
    # Not waited for: the client's own thread sends it, with others if there are any.
    message = {"type": kind, "document_id": document_id}
    to.send(TOPIC, json.dumps(message).encode(), key=document_id.encode())


def messages(group):
    """All messages from the first, one after the other. Says `ready` once the group has its partitions."""
    consumer = KafkaConsumer(
        bootstrap_servers=BROKERS,
        group_id=f"{TOPIC}-{group}",
        auto_offset_reset="earliest",
    )
    consumer.subscribe([TOPIC])
    while not consumer.assignment():
        # What is read here is not lost: it is handed on below.
        for records in consumer.poll(timeout_ms=100).values():
            yield from (json.loads(record.value) for record in records)
    print("ready", flush=True)
    for record in consumer:
        yield json.loads(record.value)
