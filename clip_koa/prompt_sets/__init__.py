"""Prompt sets as data: one YAML file each, read by ``clip_koa.prompts.read_prompts``."""
