"""The gRPC services: they translate, and leave the work to the nouns of `core_service`."""
