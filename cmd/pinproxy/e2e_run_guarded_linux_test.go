package main

func guarded() {}
