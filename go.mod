module jwt-auth-api

go 1.26.0
