"""The contract between shard writers (`tasks`) and shard readers (`training`)."""
