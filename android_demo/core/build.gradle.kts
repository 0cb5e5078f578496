plugins {
    id("org.jetbrains.kotlin.jvm")
}

kotlin {
    compilerOptions {
        allWarningsAsErrors.set(true)
        jvmTarget.set(org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_1_8)
    }
}

java {
    sourceCompatibility = JavaVersion.VERSION_1_8
    targetCompatibility = JavaVersion.VERSION_1_8
}

dependencies {
    // Android's own providers have Ed25519 only from API 33 on.
    implementation("org.bouncycastle:bcprov-jdk18on:1.87")
    testImplementation("junit:junit:4.13.2")
}

tasks.test {
    systemProperty("app.fixtures", rootDir.resolve("../app_fixtures").path)
}
