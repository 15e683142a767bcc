// Command jwt-auth-api is an HTTP service in which people register and log in with e-mail and password, and are known
// by a JWT from then on.
package main

func main() {}
